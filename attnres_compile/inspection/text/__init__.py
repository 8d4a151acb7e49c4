"""An inspection as text: tables (``inspection_text``), a diff of the stream (``skeleton``), Graphviz (``dot``)."""
