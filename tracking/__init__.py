"""The MLflow side of a run."""
