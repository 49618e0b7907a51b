"""Who: rows for agents, sessions and traces, found by key in bounded tables."""
