"""The client side: one block of simulated clients or gossip peers, and the worker process that trains it."""
