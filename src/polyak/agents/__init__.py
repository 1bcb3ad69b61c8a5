"""The algorithms, one file each; a file reads like the page of the book and imports no other agent."""
