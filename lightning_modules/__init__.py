"""A model, its losses and its step, for Lightning; and the front desk (cli)."""
