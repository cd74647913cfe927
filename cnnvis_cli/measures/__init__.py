"""Measures of units over a sample of images: arithmetic on arrays, without files or networks."""
