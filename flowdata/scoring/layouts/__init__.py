"""From the rows of a data set to tokens, and which of them are scored."""
