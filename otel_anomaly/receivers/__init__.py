"""The doors: OTLP over gRPC and over HTTP, and the monitoring page.

A door takes bytes off the wire, holds them against its limits, hands them to `consume` and says
what became of them. It reads nothing of what is inside.
"""
