"""What crosses between participants, as bytes."""
