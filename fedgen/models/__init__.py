"""Models: built in, or any torch.nn.Module by import path."""
