"""The report of a run: one self-contained HTML page, made from the run folder without torch.

May import `store` and the modules beside these packages.
"""
