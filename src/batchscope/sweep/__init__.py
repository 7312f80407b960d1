"""Which trials run, where and in what order? Plan, executors and the runner that joins them to the store."""
