package view

const sysSetns = 308 // which the standard library does not name on every architecture
