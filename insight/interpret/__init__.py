"""Why a model gives the score that it gives: explain, judge, record, draw."""
