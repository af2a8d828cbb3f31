"""The claims and their rules, written before the runs (claims.toml), evidence files, intervals and
verdicts.

Start with `ledger.rows`; `replay` makes stored records again.
"""
