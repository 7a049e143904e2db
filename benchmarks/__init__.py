"""Speed and accuracy of artefacts, measured so that the numbers can be believed."""
