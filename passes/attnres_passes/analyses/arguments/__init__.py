"""What attentions take as queries, keys and values, and which matrix products behind a norm make them."""
