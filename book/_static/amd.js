// Offline pages only: widgets that the manager does not hold, such as anywidget, are looked for beside this file.
require.config({ baseUrl: document.currentScript.src.replace(/\/[^/]*$/, "") });
