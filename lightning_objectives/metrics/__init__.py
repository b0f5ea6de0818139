"""torchmetrics metrics of calibration and accuracy."""
