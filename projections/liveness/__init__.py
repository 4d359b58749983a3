"""Who is alive: heartbeats, time limits, the nodes of a log and their leader."""
