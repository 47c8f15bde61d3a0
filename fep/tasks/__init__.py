"""The task-ID queue (任务ID队列) and the evidence engine: nothing sent twice, nothing lost."""
