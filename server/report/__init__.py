"""One self-contained HTML page from a run folder alone, without torch.

It may import `store` and the modules beside these packages.
"""
