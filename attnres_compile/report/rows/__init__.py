"""The counted rows of the overhead table: computation, memory traffic, and stored or sent memory."""
