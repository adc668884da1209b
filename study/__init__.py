"""The lab report's figures, redone: what is run, what is kept of it, and the page that says which claims hold."""
