"""mIoU of checkpoints and artefacts on labelled data."""
