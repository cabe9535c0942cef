"""The pure core: models, data contract, losses, metrics, stages, interpretation. Knows no training framework and no tracker."""
