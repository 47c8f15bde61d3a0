"""Fund pooling (资金归集): query, judge by threshold, sweep by rule, for each account of a pool."""
