package view

const sysSetns = 268 // which the standard library does not name on every architecture
