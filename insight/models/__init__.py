"""One architecture per file: plain arguments in, a NamedTuple out."""
