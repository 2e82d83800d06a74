"""The rounds of a star, of gossip, and of gossip in virtual time, played on a pool.

It may import `store`, `pools` and the modules beside these packages; it knows no run, no screen and no report.
"""
