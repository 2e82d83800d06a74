"""No data sets."""
