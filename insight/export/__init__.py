"""A trained model leaves: the bundle, and the card that goes with it."""
