"""Hand out blocks to Dask workers, or to processes that share them; may import resources and what is below it."""
