"""Published training objectives that plug into any existing Lightning model, unedited."""

__version__ = "0.1.0"
