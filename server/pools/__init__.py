"""Where blocks are computed: in this process, or by workers on Ray; and rows whose slices stay with the workers.

It may import `store` and the modules beside these packages.
"""
