"""Pure graph transforms, ``ModelProto`` to ``ModelProto``, one per file; ``export.plan`` sets their order."""
