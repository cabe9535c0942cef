"""What a model looks at: record, rollout, draw."""
