"""Tables, figures and a page from many runs."""
