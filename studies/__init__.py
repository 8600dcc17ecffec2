"""Studies: controlled experiments that reproduce a paper with the toolkit, one file per paper."""
