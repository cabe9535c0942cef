"""Factors on the weight of a loss term by ``progress`` through the stage, from 0 to 1: the ``schedule`` of a term.

A contrastive start and a VICReg finish: ``fade_out`` for one term, ``fade_in`` with the same ``start`` and ``end`` for the other.
"""

from __future__ import annotations

from insight.errors import InputError


def fade_in(progress: float, start: float = 0.0, end: float = 1.0) -> float:
    """0 until ``start``, 1 from ``end`` on, a straight line between.

    Raises:
        InputError: not ``0 <= start <= end <= 1``.

    >>> [fade_in(progress, start=0.25, end=0.75) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    if not 0 <= start <= end <= 1:
        raise InputError(f"start={start}, end={end}: fractions of the stage, 0 <= start <= end <= 1")
    if progress >= end:
        return 1.0
    return max(0.0, (progress - start) / (end - start)) if end > start else 0.0


def fade_out(progress: float, start: float = 0.0, end: float = 1.0) -> float:
    """1 until ``start``, 0 from ``end`` on, a straight line between.

    Raises:
        InputError: not ``0 <= start <= end <= 1``.

    >>> [fade_out(progress, start=0.25, end=0.75) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    return 1 - fade_in(progress, start, end)
