"""Metrics of a finished run, one file each: what they are, their versions, what they need and what keys they give."""
