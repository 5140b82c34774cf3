// Apart from page.js, so that page.js can be imported by tests, and no script stands in the page itself.
import { start } from "./page.js";

start();
