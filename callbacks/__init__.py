"""One job each: ask insight, hand the result to a logger."""
