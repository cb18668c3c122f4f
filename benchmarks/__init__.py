"""Speed and memory against the naive forms and against other libraries: `divax bench`."""
