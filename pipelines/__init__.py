"""Images on disk to batches on the device. Nothing in here knows of Ray, MLflow or a model."""
