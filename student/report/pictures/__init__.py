"""The pictures of a page: kept on disk while an evaluation runs, chosen and made small enough when it is over."""
