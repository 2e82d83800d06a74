"""The bytes that participants exchange."""
