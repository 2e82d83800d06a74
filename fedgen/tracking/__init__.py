"""What a run reports while it goes: its rounds, its result, and the contract of those that watch it."""
