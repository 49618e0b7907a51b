"""The doors: OTLP over gRPC and over HTTP, and the monitoring page.

A door takes bytes off the wire, holds them against its limits, hands them to `consume` and says
what became of them. What is inside is for others to judge; a door decodes JSON to protobuf, and
looks now and then into an accepted request for what only profiles may have (string_indexes.py).
"""
