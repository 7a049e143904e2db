"""Pure transforms, ``ModelProto`` to ``ModelProto``, one a file; ``export.plan`` holds their order."""
