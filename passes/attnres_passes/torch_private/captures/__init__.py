"""What a capture needs of Dynamo: whose frame a graph is of, and functions that it meets for the first time."""
