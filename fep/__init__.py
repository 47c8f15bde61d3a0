"""An enterprise bank front-end processor (企业端前置机) on trio."""
