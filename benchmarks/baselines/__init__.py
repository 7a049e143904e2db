"""The same weights through other pipelines, each in its own process."""
