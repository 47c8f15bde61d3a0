"""The banks' persistent connections (银行长连接): connect, log on, correlate, reconnect."""
